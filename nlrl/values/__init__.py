"""Value estimators in words. Monte Carlo is a look-ahead to the end of the game; TD stops earlier and asks V^L."""
