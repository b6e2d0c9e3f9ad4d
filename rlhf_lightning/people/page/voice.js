// What the page says: the line of the board and the box for what went wrong are both read aloud by screen readers.

export const get = (id) => document.getElementById(id);

export function say(text) {
  get("status").textContent = text;
}

// An empty text takes the box away.
export function complain(text) {
  get("message").textContent = text;
  get("message").hidden = text === "";
}

export function progress({ done, of }) {
  get("count").textContent = `${done} of ${of}`;
  get("progress").max = Math.max(of, 1);
  get("progress").value = done;
}

// Nothing else is taken while the server has not answered. What fails is said.
export async function alone(page, task) {
  page.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await task();
  } catch (error) {
    complain(error.message);
  } finally {
    page.busy = false;
    document.body.removeAttribute("aria-busy");
  }
}
