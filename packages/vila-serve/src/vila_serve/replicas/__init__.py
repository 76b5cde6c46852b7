"""Several replicas of the server's application, on one machine or a cluster, with Ray Serve.

    front.py     HTTP → a request as data; retries what a dead replica did not finish
    messages.py  what the two say to each other
    routing.py   sends requests that belong together to the same replica, while it has room
    replica.py   runs the application in a process of its own, with its own model
    page.py      the chat page, whose questions replicas answer
    run.py       starts and stops all of it

The front runs in the process of `vila-serve`; Ray starts the replicas, and starts them again when they die.
"""
