"""Words around a letter that announce it as the answer or deny it, in English, Chinese, Japanese and Korean.

All patterns apply to text that `general.py` has normalized (NFKC, no Markdown emphasis), and to at most `WINDOW`
characters of it, so none can take long.
"""

import re

WINDOW = 60
"""Characters before and after a letter that can announce or deny it."""

OPENING, CLOSING = "([{\"'“‘「『【<", ")]}\"'”’」』】>"
_BEFORE = rf"\s*(?:(?i:option|choice|letter|选项|選項|選択肢|선택지|보기)\s*:?\s*)?[{re.escape(OPENING)}\s]*$"
_IS = (
    r"(?:is|was|are|'s|’s|(?:would|should|must|could|might|may|will|can)\s+be|seems(?:\s+to\s+be)?|looks|"
    r"appears(?:\s+to\s+be)?)"
)
_ANSWER = r"(?:answer|ans\b\.?|solution|antwort|respuesta|réponse|risposta|resposta)"

ANNOUNCED_BEFORE = re.compile(
    rf"(?:\b{_ANSWER}[\"']?\s*(?:\([^()]*\)\s*)?(?:{_IS}|es|est|ist|è|é)?\s*(?:(?:definitely|clearly|likely|probably|simply|"
    r"therefore|thus|most\s+likely|either|both)\s+)*[:=\-–—→>]*"
    rf"|\b(?:option|choice|letter)\s*(?:{_IS}\s*(?:either\s+)?[:=]?|[:=])"
    rf"|\b(?:it|this|that)\s*{_IS}(?:\s+(?:definitely|clearly|likely|probably|either))?\s*:?"
    r"|\b(?:choose|chose|select|pick|vote(?:\s+for)?|go(?:ing)?\s+(?:with|for)|went\s+(?:with|for)|say|guess|think|"
    r"believe|conclude|answer|leaving|leaves|match(?:es)?|corresponds?\s+to|points?\s+to)"
    r"(?:\s+(?:it\s*(?:is|'s|’s)|that))?\s*:?"
    r"|\b(?:must\s+be|should\s+be|would\s+be|looks\s+like|definitely|certainly|probably|likely|possibly|perhaps|its)"
    r"|\b(?:assistant|response)\s*:|(?:^|\n)[ \t]*(?:q(?:uestion)?\s*)?\d{1,3}\s*[.):]"
    r"|\b(?:so|thus|hence|therefore|finally|conclusion)\s*[,:]?"
    r"|=>|→|\\boxed"
    r"|(?:答案|正解|答え|回答|解答|正答|정답|답)[】\])」]?\s*(?:应该是|應該是|应为|應為|是|为|為|选|選|は|が|은|는|이|:|=)*"
    r"|(?:选择|選擇|应选|故选|选|選|认为是|而是|应该是|應該是|应当是|就是|是)\s*:?"
    rf"){_BEFORE}",
    re.IGNORECASE,
)
CONTRAST_BEFORE = re.compile(rf"\b(?:but|it's|rather|instead)(?:\s+(?:is|rather|instead))?,?{_BEFORE}", re.IGNORECASE)
OPTION_BEFORE = re.compile(
    rf"(?:\b(?:option|choice|letter|answer)|选项|選項|選択肢|선택지|보기)\s*:?\s*[{re.escape(OPENING)}\s]*$",
    re.IGNORECASE,
)
ANNOUNCED_AFTER = re.compile(
    rf"[{re.escape(CLOSING)}]*\s*(?:"
    rf"{_IS}\s+(?:[a-z-]+\s+){{0,4}}?(?:correct|right|best|answer|choice|option|solution|true|accurate|likely|appropriate|"
    r"better(?!\s+than)|closest|match)\b"
    r"|(?:fits|matches|suits|remains)\b|works\s*(?:best|[.!]|$)|makes\s+(?:the\s+)?most\s+sense\b"
    r"|describes\s+(?:\w+\s+){0,4}best\b|,?\s*(?:it\s+is|I\s+(?:think|believe|guess|would\s+say))\s*(?:[.!]|$)"
    r"|[:\-–—]\s*(?:yes|correct|right|true)\b"
    r"|(?:选项|選項|项|項)?\s*(?:是|才是|最)?\s*(?:正确|正確|对的|對的|(?:对|對)(?![\u4e00-\u9fff])|答案|最佳|合适)"
    r"|(?:选项|選項|项|項|番|번)\s*[。.!！]?\s*$"
    r"|(?:が|は)?\s*(?:正解|正しい|正答|答え|です|だと|である)"
    r"|(?:번)?\s*(?:이|가|은|는)?\s*(?:정답|맞|옳|입니다|이다|예요|이에요|답)"
    r")",
    re.IGNORECASE,
)
DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|none\s+of|rather\s+than|instead\s+of|unlike|except(?:\s+for)?|excluding|"
    r"excludes?|against|without|rul(?:e[sd]?|ing)\s+out|eliminat(?:e[sd]?|ing)|reject(?:s|ed|ing)?|discard(?:s|ed|ing)?)\b"
    r"|n['’]t\b"
    r")(?:\s+(?:be|the|think|believe|say|choose|select|pick|simply|just|necessarily|correct|right|best|answer|it|that|is|likely|"
    rf"match|as|either|it's|it’s))*[\s:,]*{_BEFORE}"
    rf"|(?:不是|并非|並非|不选|不選|不应选|非|排除|除了|而不是|不可能是|不会是)\s*{_BEFORE}",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    rf"[{re.escape(CLOSING)}]*\s*(?:[:\-–—]\s*)?(?:"
    r"(?:(?:is|are|was|were|seems|looks|appears|has|have|would|could|should|can|does|do|did|must|may|might|will|both|all|"
    r"be|to|also|clearly|probably|definitely|simply|just|therefore|obviously|the|an?|most|very|completely|factually)\s+)*"
    r"(?:not\b|never\b|cannot\b|(?:is|are|was|were|does|do|did|ca|wo|could|would|should|has)n['’]t\b|no\b(?!\s*doubt)|"
    r"wrong|incorrect|false\b|unlikely|impossible|inaccurate|irrelevant|invalid|untrue|out\b|ruled\s+out|eliminated|"
    r"excluded|rejected|implausible|contradict|unsupported|mistaken|x\b|✗|✘|❌)"
    r"|(?:选项|選項|项|項)?\s*(?:是|也)?\s*(?:不对|不對|不正确|不正確|不是|错|錯|不符|不合|有误|不可能)"
    r"|(?:は|が|では|じゃ|も)?\s*(?:ではな|ではあり|じゃな|な(?:い|く)|誤|間違|不正解|違)"
    r"|(?:번)?\s*(?:이|가|은|는|도)?\s*(?:아니|아닙|아닌|틀|오답|잘못)"
    r")",
    re.IGNORECASE,
)
JOINED = re.compile(
    rf"[{re.escape(CLOSING)}]*\.?(?P<mark>\s*(?:,\s*(?:and|or)\b|and/or\b|\band\b|\bor\b|\bplus\b|[/&、+]|,|;|\n|\s&\s|"
    r"或者?|和|与|與|及|か|と|または|또는|혹은|이나|나|과|와|및)\s*)"
    rf"(?:(?:option|choice|maybe|possibly|even|perhaps|选项)\s+)?[{re.escape(OPENING)}\s]*",
    re.IGNORECASE,
)
ENDS_LIST = re.compile(rf"[{re.escape(CLOSING)}]*\s*(?:$|[.,;!?/&。、\n)]|and\b|or\b|或|和)", re.IGNORECASE)
REASON = re.compile(
    r"[ \t]+(?:because|since|as|for|is|was|are|isn't|isn’t|would|should|must|seems|looks|appears|and|or|but|not|rather|"
    r"fits|matches|suits|over|instead|due|given|here|if|when|where)\b"
)
