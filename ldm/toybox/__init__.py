"""The toybox: a small world of solids on a table, drawn by ray marching, with exact truth for every condition."""
