"""What is read in a browser or handed in: what was seen and done, as HTML and Markdown, by
`templates/report/`.

It asks nobody: records, looks and findings are given to it. It may import `engine` and what that
may.
"""
