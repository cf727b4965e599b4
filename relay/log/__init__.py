"""The live log: positions, segments, index, renditions, cursors, store, retention.  No Twisted, no clock."""
