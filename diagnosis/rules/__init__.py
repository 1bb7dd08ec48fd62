"""Rules that explain a bad model: each looks at the Measurements and returns a Cause or None.

To add a rule, write it in the module of its subject with its thresholds and their reasons above it, list it in
verdict.py, and add its texts to report/locales/en.json and zh.json: "causes" holds the title and what to do,
"reasons" a sentence for each measurement. A rule that lacks a measurement returns None.
"""
