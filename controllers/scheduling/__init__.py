"""Scheduling of jobs on a cluster: one file per algorithm, named as it is registered."""
