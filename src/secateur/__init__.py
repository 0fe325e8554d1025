"""Measure how much every connection matters, cut those that matter least, prove what the cut cost."""
