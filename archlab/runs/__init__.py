"""What a run is: made, resumed, loaded, swept."""
