// Where the gateway is: this file is one folder below it, wherever a proxy or an application has put it.

export const BASE = new URL("..", import.meta.url);
