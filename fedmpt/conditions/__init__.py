"""Words about classes from a language model: the conditions of FedMPT's prompts, and descriptors for FedMVP.

Nothing but class names enters a prompt. Answers are kept with the prompts that they answer, and what follows from them
is computed without drawing or asking anything, so that a result can be checked and made again from its file.
"""
