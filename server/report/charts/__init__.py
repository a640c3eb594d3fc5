"""Charts: from a few typed records to one SVG each. The report and the live page use the same ones."""
