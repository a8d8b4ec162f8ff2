"""Markup that cannot be injected into: every plain string is escaped, only `Html` is not."""

import html
from collections.abc import Iterable

VOID = ('img', 'meta', 'br', 'path', 'line', 'circle', 'rect', 'polyline', 'polygon')


class Html(str):
  """Text that is markup already. Adding a str to it gives a str again, which will be escaped."""

  __slots__ = ()


def tag(name: str, /, *children, **attributes) -> Html:
  """<name attributes>children</name>.

  Args:
    name: of the element.
    *children: Html is taken as it is, None is skipped, lists are joined, all else is escaped.
    **attributes: `class_` is 'class', 'stroke_width' is 'stroke-width'; None and False are left
      out, True is the bare attribute.
  """
  words = [name]
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = key.rstrip('_').replace('_', '-')
    words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
  opening = '<' + ' '.join(words) + '>'
  if name in VOID:
    return Html(opening[:-1] + '/>')
  return Html(opening + join(*children) + f'</{name}>')


def join(*children) -> Html:
  """The children of one element, one after the other."""
  return Html(''.join(_escaped(child) for child in children))


def _escaped(child) -> str:
  if child is None:
    return ''
  if isinstance(child, Html):
    return child
  if isinstance(child, str) or not isinstance(child, Iterable):
    return html.escape(str(child))
  return join(*child)
