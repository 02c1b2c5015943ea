/** The actor that tests run in other places. */
import { z } from "zod";
import { actor, protocol, refTo, type Remote, stop } from "../mod.ts";

export const noteProtocol = protocol({
  commands: { note: { text: z.string() } },
  requests: { greet: { ask: {}, reply: z.string() } },
});

export const echoProtocol = protocol({
  commands: {
    crash: {},
    /** Throws outside any handler. */
    blowUp: {},
    exit: { code: z.number() },
    finish: {},
    /** Never returns. */
    spin: {},
    /** Writes a stray line where frames are expected. */
    babble: {},
    tell: { to: refTo(noteProtocol), text: z.string() },
    tellParent: { text: z.string() },
  },
  requests: {
    echo: { ask: { value: z.unknown() }, reply: z.unknown() },
    greetVia: { ask: { to: refTo(noteProtocol) }, reply: z.string() },
    pid: { ask: {}, reply: z.number() },
    never: { ask: {}, reply: z.void() },
  },
});

export const echo = (parent?: Remote) =>
  actor({
    protocol: echoProtocol,
    initial: () => 0,
    async handle(state, message, context) {
      switch (message.kind) {
        case "echo":
          message.reply(message.value);
          return state;
        case "greetVia":
          message.reply(await context.ask(message.to, { kind: "greet" }));
          return state;
        case "pid":
          message.reply(Deno.pid);
          return state;
        case "never":
          return state;
        case "tell":
          message.to.send({ kind: "note", text: message.text });
          return state;
        case "tellParent":
          parent!.ref(noteProtocol, "notes").send({ kind: "note", text: message.text });
          return state;
        case "crash":
          throw new RangeError("told to crash");
        case "blowUp":
          setTimeout(() => {
            throw new RangeError("told to blow up");
          });
          return state;
        case "exit":
          return Deno.exit(message.code);
        case "babble":
          Deno.stdout.writeSync(new TextEncoder().encode("Hello there\n"));
          return state;
        case "spin":
          for (;;);
        case "finish":
          return stop;
      }
    },
  });
