/** `@std/yaml`, typed. npm's repackaging carries no types, and an untyped package is silently `any`. */
// @ts-types="./yaml.d.ts"
export { parse, stringify } from "npm:deno-std@1.4.0/yaml/mod.js";
