"""The product with a matrix of signs that lie packed in memory, one bit a weight, under scales by input column."""
