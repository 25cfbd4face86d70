"""The users, countries, addresses and certificates of a run, in the formats of the proxies."""
import csv, ipaddress, os, random, subprocess

from inputs.mmdb import Database

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
USERS = 100_000
ADDRESSES = 10_000
HOST = "app.example.com"


class World:
    """Every country of the EEA and half of the users belong to region `eu`, all others to `us`."""

    def __init__(self, folder, database):
        self.folder, self.database = folder, database or f"{ROOT}/geoip/country.mmdb"
        with open(f"{ROOT}/geoip/countries.csv", newline="") as file:
            self.eu_countries = [row["alpha2"] for row in csv.DictReader(file) if row["eea"] == "1"]
        self.countries = Database(self.database)
        self.random = random.Random(7)
        self.addresses = self._addresses()
        self._write_users()
        self._write_countries()

    def path(self, name):
        return f"{self.folder}/{name}"

    def write(self, name, lines):
        with open(self.path(name), "w") as file:
            file.writelines(line + "\n" for line in lines)

    def region_of_country(self, country):
        return "eu" if country in self.eu_countries else "us"

    def region_of_user(self, number):
        """The recorded region, or None for a user who is not in the table."""
        if number >= USERS:
            return None
        return "eu" if number * 2654435761 >> 7 & 1 else "us"

    def _addresses(self):
        """Public addresses with the regions of their countries, half of them in `eu`."""
        found, left = [], {"eu": ADDRESSES // 2, "us": ADDRESSES // 2}
        while any(left.values()):
            address = ipaddress.IPv4Address(self.random.getrandbits(32))
            country = self.countries.country(address)
            if not address.is_global or not country:
                continue
            region = self.region_of_country(country)
            if left[region]:
                left[region] -= 1
                found.append((str(address), region))
        self.random.shuffle(found)
        return found

    def _write_users(self):
        regions = [(f"u{number}", self.region_of_user(number)) for number in range(USERS)]
        self.write("users.csv", ["user,home,jurisdiction"] + [f"{user},{region}," for user, region in regions])
        self.write("users.nginx", [f"{user} {region};" for user, region in regions])
        self.write("users.haproxy", [f"{user} {region}" for user, region in regions])
        self.write("users.lua", ["return {"] + [f'{user}="{region}",' for user, region in regions] + ["}"])

    def _write_countries(self):
        self.write("eu.nginx", [f"{country} eu;" for country in self.eu_countries])
        self.write("eu.haproxy", [f"{country} eu" for country in self.eu_countries])
        self.write("eu.lua", ["return {"] + [f"{country}=true," for country in self.eu_countries] + ["}"])
        self.write("networks.haproxy", [f"{network} {country}" for network, country in self.countries.networks()])

    def write_certificates(self, domicile):
        """One certificate for clients (`site`) and one for each region, of one authority (`peers-ca`)."""
        folder = self.path("certs")
        command = [domicile, "certificates", "--out", folder, "--host", HOST, "--host", "127.0.0.1", "eu", "us"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in ("site", "eu", "us"):
            # HAProxy reads the certificate and the key from one file.
            with open(f"{folder}/{name}.bundle", "w") as bundle:
                for part in ("pem", "key"):
                    with open(f"{folder}/{name}.{part}") as file:
                        bundle.write(file.read())
        # Workers of a proxy that is started by root may run as another user.
        for name in os.listdir(folder):
            os.chmod(f"{folder}/{name}", 0o644)
