"""What archlab can be asked, one function for each verb of the command line; each returns an object that shows itself."""
