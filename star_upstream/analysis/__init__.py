"""Models looked at: how alike their layers are, and how long they take."""
