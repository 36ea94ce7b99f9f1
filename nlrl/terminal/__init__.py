"""What a person sees: live view, plain lines, final table, replay. Consumers of `nlrl.types.Event`, no more."""
