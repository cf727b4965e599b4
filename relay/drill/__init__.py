"""The drill: break each server of a cluster under viewers, and count what they see.

``relay-drill --help``.  It proves on your machine what README says of ours.

    stamps      the stream, whose every message bears a number             pure
    judge       what one viewer missed, got twice, or waited for           pure
    report      rows, totals, the verdict                                  pure
    faults      what can be done to a node, and how it is undone
    rig         the nodes, as processes of their own
    viewers     who watches, over RTMP and HTTP-FLV
    publisher   who publishes
    drill       one row after another
    command     the command line
"""
