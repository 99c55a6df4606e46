"""Pages in HTML and Markdown of looks and runs, from the templates in `templates/report/`.

It contacts no host: records, looks and findings are passed to it. It may import `engine` and what
`engine` may import.
"""
