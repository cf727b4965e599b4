"""One module a tier: its Options and its makeService.  Composition only."""
