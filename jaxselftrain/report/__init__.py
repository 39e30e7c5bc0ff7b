"""Takes run folders, gives one page that shows what happened in them, with every picture as PNG and CSV.

runs.py               run folders -> Run; runs that differ in their seed alone -> Group
curves.py             groups, a metric -> mean over the seeds and its band
story.py              groups -> what happened, in sentences
samples.py, text.py   responses.jsonl -> shares over time, a bounded choice of questions to browse, nothing unseen in them
series.py             the pictures over the steps: which metrics, how to read them
pictures.py           groups -> PNG and CSV files; special_pictures.py: those that are no curves over the steps
page.py               all of it -> report.html, by page.html and page.css
command.py            jaxselftrain report, once or again and again while a run trains
"""
