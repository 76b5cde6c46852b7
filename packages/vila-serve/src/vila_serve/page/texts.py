"""The texts of the chat page, one table per language."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """The texts of the page in one language. Names in braces are filled in.

    Attributes:
        code: the language as a web page names it.
        name: what the switch shows.
    """

    code: str
    name: str
    welcome: str
    ask: str
    new_chat: str
    settings: str
    system_prompt: str
    system_prompt_hint: str
    max_tokens: str
    temperature: str
    temperature_hint: str
    top_p: str
    seed: str
    seed_hint: str
    frames: str
    frames_hint: str
    schema: str
    schema_hint: str
    seen: str
    seen_empty: str
    seen_budget: str
    text: str
    image: str
    video: str
    left: str
    tiles: str
    frame_tiles: str
    more_tiles: str
    reading: str
    writing: str
    stopped: str
    tokens_used: str
    first_token: str
    speed: str
    cut: str
    empty: str
    mode_ask: str
    mode_draw: str
    draw: str
    drawing_settings: str
    pictures: str
    guidance: str
    guidance_hint: str
    negative_prompt: str
    negative_prompt_hint: str
    drawing: str
    drawn: str
    text_only: str
    too_many_files: str
    busy: str
    failed: str


ENGLISH = Texts(
    code="en",
    name="English",
    welcome="### Ask about pictures and videos\nDrop them into the box below, or try one of these.",
    ask="Ask a question; drop in images and videos",
    new_chat="New chat",
    settings="Settings",
    system_prompt="System prompt",
    system_prompt_hint="Instructions for the whole conversation",
    max_tokens="Longest answer (tokens)",
    temperature="Temperature",
    temperature_hint="0 always takes the likeliest token",
    top_p="Top p",
    seed="Seed",
    seed_hint="The same seed gives the same answer; empty is random",
    frames="Frames per video",
    frames_hint="Evenly chosen; more frames take more tokens",
    schema="JSON schema",
    schema_hint="The answer is JSON that follows it",
    seen="What the model sees",
    seen_empty="After a question: the tokens of the prompt, and the tiles into which images and videos are cut.",
    seen_budget="{used} of {context} tokens",
    text="Text",
    image="Image {number}",
    video="Video {number}",
    left="free",
    tiles="{tokens} tokens · tiles of {size} px: {layout}",
    frame_tiles="{tokens} tokens · frames of {size} px: {count}",
    more_tiles="and {count} more",
    reading="Reading …",
    writing="Writing …",
    stopped="Stopped",
    tokens_used="Tokens: prompt {total} ({media} of media, {cached} from the cache), answer {count}",
    first_token="first token after {seconds} s",
    speed="{rate} tokens/s",
    cut="cut at the longest answer",
    empty="Type a question, too.",
    mode_ask="Ask",
    mode_draw="Draw",
    draw="Say what to draw",
    drawing_settings="Drawing",
    pictures="Pictures",
    guidance="Guidance",
    guidance_hint="How strictly the text is followed; 1 is off",
    negative_prompt="Negative prompt",
    negative_prompt_hint="What the pictures should not show",
    drawing="Drawing … {percent} %",
    drawn="Drawn in {seconds} s · {tokens} tokens of pictures · seed {seed}",
    text_only="Pictures are drawn from a text alone. Remove the files.",
    too_many_files="The server keeps too many files now. Try again later.",
    busy="The server is busy. Try again in {seconds} s.",
    failed="The server failed to answer. Its log says why under request {number}.",
)

CHINESE = Texts(
    code="zh",
    name="中文",
    welcome="### 用图片和视频提问\n把文件拖入下方输入框，或试试这些示例。",
    ask="输入问题，可拖入图片和视频",
    new_chat="新对话",
    settings="设置",
    system_prompt="系统提示词",
    system_prompt_hint="对整个对话生效的指令",
    max_tokens="最大回答长度（token）",
    temperature="温度",
    temperature_hint="0 表示始终选择概率最高的 token",
    top_p="Top p",
    seed="随机种子",
    seed_hint="相同的种子得到相同的回答；留空则随机",
    frames="每个视频的帧数",
    frames_hint="均匀取帧；帧数越多，占用的 token 越多",
    schema="JSON Schema",
    schema_hint="回答将是符合该模式的 JSON",
    seen="模型看到的内容",
    seen_empty="提问后，这里显示提示的 token 数，以及每个图片和视频被切成的图块。",
    seen_budget="已用 {used} / {context} token",
    text="文本",
    image="图片 {number}",
    video="视频 {number}",
    left="剩余",
    tiles="{tokens} token · {size} 像素的图块：{layout}",
    frame_tiles="{tokens} token · {size} 像素的帧：{count}",
    more_tiles="另有 {count} 个",
    reading="读取中…",
    writing="生成中…",
    stopped="已停止",
    tokens_used="token：提示 {total}（媒体 {media}，缓存命中 {cached}），回答 {count}",
    first_token="首个 token {seconds} 秒",
    speed="{rate} token/秒",
    cut="已达到最大回答长度",
    empty="请同时输入问题。",
    mode_ask="提问",
    mode_draw="画图",
    draw="描述要画的内容",
    drawing_settings="画图",
    pictures="图片数量",
    guidance="引导强度",
    guidance_hint="数值越大，越严格遵循文字；1 表示关闭",
    negative_prompt="反向提示词",
    negative_prompt_hint="图片中不应出现的内容",
    drawing="画图中… {percent} %",
    drawn="用时 {seconds} 秒 · 图片 {tokens} token · 种子 {seed}",
    text_only="画图只需要文字，请移除文件。",
    too_many_files="服务器保存的文件过多，请稍后重试。",
    busy="服务器繁忙，请在 {seconds} 秒后重试。",
    failed="服务器未能回答。原因见日志，请求编号 {number}。",
)

LANGUAGES = {texts.code: texts for texts in (ENGLISH, CHINESE)}


def language_of(accept: str | None) -> str:
    """Return the code of the page's language that a browser prefers by its header Accept-Language."""
    for entry in (accept or "")[:200].split(","):
        code = entry.partition(";")[0].strip().lower().partition("-")[0]
        if code in LANGUAGES:
            return code
    return ENGLISH.code
