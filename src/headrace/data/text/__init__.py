"""Lines of text: by their number from plain files, as streams from compressed ones."""

from headrace.data.text.lines import JSONLines, TextLines
from headrace.data.text.streams import StreamedJSONLines, StreamedTextLines

__all__ = ["JSONLines", "StreamedJSONLines", "StreamedTextLines", "TextLines"]
