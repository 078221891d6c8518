"""What the figures of a run allow one to say: intervals, differences between runs, and the predictions behind them.

Intervals of metrics (:mod:`.bootstrap`, from the sums of :mod:`.sums`), several seeds (:mod:`.seeds`), comparisons of
runs (:mod:`.comparing`), predictions as files (:mod:`.predictions`), and plots (:mod:`.plots`).
"""
