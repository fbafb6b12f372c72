"""Analyses: arrays and tables in, one finding out; strangers to one another but for the statistics they share."""
