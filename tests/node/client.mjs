// What a program in Node does with the `openai` package: prints one JSON object with everything that it got.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [baseURL, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const messages = [
  { role: "system", content: "Be brief." },
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url, detail: "auto" } },
      { type: "text", text: "What word is written?" },
    ],
  },
];
const request = { model: "vila-tiny", messages, temperature: 0, seed: 1 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const answer = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 2 });

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

// The streaming helper of the package gathers the same events itself.
const gathered = await client.chat.completions.stream(request).finalContent();

const response = await client.responses.create({
  model: "vila-tiny",
  temperature: 0,
  input: [
    {
      role: "user",
      content: [
        { type: "input_image", image_url: url, detail: "auto" },
        { type: "input_text", text: "What word is written?" },
      ],
    },
  ],
});

const errors = {};
for (const [name, bad] of Object.entries({
  model: { ...request, model: "gpt-4" },
  messages: { ...request, messages: [] },
  media: {
    ...request,
    messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "https://example.org/a.png" } }] }],
  },
})) {
  try {
    await client.chat.completions.create(bad);
  } catch (error) {
    errors[name] = { kind: error.constructor.name, status: error.status, request: Boolean(error.requestID) };
  }
}

// A client that stops reading: the server must answer the next request as if nothing had happened.
const stopped = await client.chat.completions.create({ ...request, stream: true });
for await (const _ of stopped) break;
const after = await client.chat.completions.create(request);

console.log(
  JSON.stringify({
    models,
    content: answer.choices[0].message.content,
    finish: answer.choices[0].finish_reason,
    logprobs: answer.choices[0].logprobs.content.length,
    tokens: answer.usage.completion_tokens,
    streamed,
    usage,
    gathered,
    response: response.output_text,
    errors,
    after: after.choices[0].message.content,
  }),
);
