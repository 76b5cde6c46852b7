"""The chat page at `/`, built with Gradio: it needs the extra `vila-serve[page]`.

page.py      the parts of the page, and what happens when the user does something
routes.py    which requests reach Gradio
history.py   the conversation as the page keeps it
question.py  what the page sends to where the model is, and gets back
turn.py      answers a question, where the model is
seen.py      what the model sees, as HTML
texts.py     the texts in each language
"""
