"""Heads: what turns a backbone's features or maps into a task's outputs."""
