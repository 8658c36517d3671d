"""Sourced sentences about architectures, made into something that can be run and decided. Read `claim` first."""
