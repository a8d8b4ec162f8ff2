"""`report.html`: numbers and pictures of a run in, one self-contained page out. NumPy and Pillow only.

`page.render(Report)` puts it together; every chart and table is a pure function from arrays to
`html.Html`. `ssl_jax.cli.report` gathers what goes in.
"""
