/** Conversations as text, by the chat template that comes with a tokenizer (in Jinja, as Hugging Face's libraries take it). */
import { Template } from "@huggingface/jinja";
import { dirname, join } from "node:path";

export interface ChatTemplate {
  /** The template itself. */
  readonly source: string;
  /** Text of a list of messages, `{role, content}` each. Throws with the template's own words where it refuses them. */
  render(messages: readonly unknown[]): string;
}

function readIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

interface TokenizerSettings {
  readonly chat_template?: string | readonly { readonly name: string; readonly template: string }[];
  readonly bos_token?: string | { readonly content?: string } | null;
  readonly eos_token?: string | { readonly content?: string } | null;
}

/**
 * The template beside the tokenizer's file: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`. Undefined
 * where there is none; throws `SyntaxError` where it is no template.
 */
export function loadChatTemplate(tokenizerFile: string): ChatTemplate | undefined {
  const folder = dirname(tokenizerFile), path = join(folder, "tokenizer_config.json"), text = readIfThere(path) ?? "{}";
  let settings: TokenizerSettings | null;
  try {
    settings = JSON.parse(text) as TokenizerSettings | null;
  } catch (error) {
    throw new SyntaxError(`The tokenizer's settings ${path} are not JSON: ${(error as Error).message}`);
  }
  const given = settings?.chat_template;
  const source = readIfThere(join(folder, "chat_template.jinja")) ??
    (typeof given === "string" ? given : given?.find(({ name }) => name === "default")?.template);
  if (source === undefined) return undefined;
  const token = (setting: TokenizerSettings["bos_token"]) =>
    (typeof setting === "string" ? setting : setting?.content) ?? "";
  const tokens = { bos_token: token(settings?.bos_token), eos_token: token(settings?.eos_token) };
  let template: Template;
  try {
    template = new Template(source);
  } catch (error) {
    throw new SyntaxError(`The chat template in ${folder} cannot be used: ${(error as Error).message}`);
  }
  return { source, render: (messages) => template.render({ messages, add_generation_prompt: false, ...tokens }) };
}

/** The text of a conversation, or why there is none. */
export function chatText(value: unknown, chat: ChatTemplate | undefined): { text: string } | { problem: string } {
  if (!Array.isArray(value)) return { problem: value === null ? "null" : typeof value };
  if (!chat) return { problem: "a list, and the tokenizer has no chat template that makes text of messages" };
  const wrong = value.find((message) => typeof (message as { role?: unknown } | null)?.role !== "string");
  if (value.length === 0 || wrong !== undefined) {
    return { problem: "a list that holds no messages with a role and a content" };
  }
  try {
    return { text: chat.render(value) };
  } catch (error) {
    return { problem: `messages that the chat template refuses (${(error as Error).message})` };
  }
}
