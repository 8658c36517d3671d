"""How two models differ, and the way from one to the other."""
