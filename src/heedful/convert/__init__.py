"""Reading other layouts of the same mathematics."""
