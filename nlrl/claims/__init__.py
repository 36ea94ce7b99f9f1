"""The headline claims of the four architecture papers, tried in miniature: `python -m nlrl.claims`.

Each claim is a race between models of one size on one text, tuned alike, with a control that it must beat:
`contestants` names them, `streams` and `needles` write the text, `race` trains, `probes` measures, `report` says who
won.
"""
