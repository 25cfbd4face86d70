local users = dofile("<<data>>/users.lua")
local eu = dofile("<<data>>/eu.lua")

function envoy_on_request(handle)
  local headers = handle:headers()
  local geo = eu[headers:get("x-geo-country")] and "eu" or "us"
  local region = users[headers:get("x-user-id")] or geo
  headers:replace("x-geo-region", region)
  if geo == "eu" and region == "us" and string.sub(headers:get(":path"), 1, 12) == "/restricted/" then
    handle:respond({[":status"] = "451"}, "denied")
  end
end
