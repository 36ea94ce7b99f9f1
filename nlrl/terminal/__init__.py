"""What a person sees: live view, plain lines, the final table, replay. Consumers of `nlrl.types.Event`, nothing else."""
