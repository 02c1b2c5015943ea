/** `@std/text`, typed (see `yaml.ts`). */
// @ts-types="./text.d.ts"
export { levenshteinDistance } from "npm:deno-std@1.4.0/text/mod.js";
