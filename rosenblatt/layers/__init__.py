"""Whole-vector transforms made from the parts below."""
