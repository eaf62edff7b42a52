"""Pictures of what was learned: the numbers behind them."""
