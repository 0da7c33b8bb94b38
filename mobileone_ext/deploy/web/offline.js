// Keeps what the page was made of, so that it opens without a network; with one, the host's files come first.
'use strict';

async function answer(request) {
  const kept = await caches.open('page');
  try {
    const fresh = await fetch(request);
    if (fresh.ok) await kept.put(request, fresh.clone());
    return fresh;
  } catch (error) {
    const found = await kept.match(request);
    if (found) return found;
    throw error;
  }
}

addEventListener('fetch', (event) => {
  if (event.request.method === 'GET') event.respondWith(answer(event.request));
});
addEventListener('install', (event) => event.waitUntil(skipWaiting()));
addEventListener('activate', (event) => event.waitUntil(clients.claim()));
