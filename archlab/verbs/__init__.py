"""The verbs of the command line, one function for each; each returns a result that can be printed or shown in a notebook."""
