"""Nothing that a user wrote can become markup."""

from ssl_jax.report.html import Html, join, tag


def test_children_and_attributes_are_escaped():
  assert tag('b', '<script>', x='"\'<&') == '<b x="&quot;&#x27;&lt;&amp;">&lt;script&gt;</b>'
  assert tag('p', 1.5, None, ['a', tag('i', 'b')]) == '<p>1.5a<i>b</i></p>'


def test_markup_added_to_text_is_text_again():
  assert join(tag('b', 'x') + '<') == '&lt;b&gt;x&lt;/b&gt;&lt;'
  assert join(Html('<b>')) == '<b>'


def test_attributes():
  assert tag('path', class_='a', stroke_width=2, d=None, open=True, hidden=False) == (
    '<path class="a" stroke-width="2" open/>')
  assert tag('meta', name='viewport') == '<meta name="viewport"/>'
