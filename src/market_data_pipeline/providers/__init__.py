"""Where events come from: live feeds and recordings, one file each."""
