"""The one exception that is the user's to mend."""


class UserError(Exception):
    """What is wrong, where (file, tensor, flag), and what to do about it.

    The command line prints the message without a traceback and exits with code 2. Anything else
    that escapes is a defect of chopjax and keeps its traceback.
    """


def listing(problems: list[str], limit: int = 40) -> str:
    """One problem a line, indented; a long list is cut with a count of the rest."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return "\n".join(lines)
