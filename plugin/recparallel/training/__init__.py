"""What the recipes share: the options of a training, its loop, and what it writes."""
