"""Losses of labels, which methods call as they would F.cross_entropy: of items with one label, or with several."""
