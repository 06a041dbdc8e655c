"""Figures and pages made from finished results."""
