"""The short causal depthwise convolution in front of Mamba's scan, over packed rows with states."""
