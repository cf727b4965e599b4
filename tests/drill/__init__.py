"""Tests of :mod:`relay.drill`."""
