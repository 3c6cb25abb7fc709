<?php

/*
 * Makes samples.json: webhook bodies and signatures as Aryeo's sender makes them.
 *
 *     php src/cli/samples/make.php > src/cli/samples/samples.json
 *
 * Arrays go through a plain json_encode() and hash_hmac(), which is what spatie/laravel-webhook-server
 * does. People, places and ids are invented; the field names are those of Aryeo's published
 * specification. The ids come from a seed, so that a second run gives the same file.
 */

declare(strict_types=1);

mt_srand(20260301);

const SECRET = 'aryeo-demo-secret';

function id(): string
{
    $hex = '';
    for ($i = 0; $i < 16; $i++) {
        $byte = mt_rand(0, 255);
        $byte = $i === 6 ? ($byte & 0x0f) | 0x40 : ($i === 8 ? ($byte & 0x3f) | 0x80 : $byte);
        $hex .= sprintf('%02x', $byte);
    }
    return preg_replace('/^(.{8})(.{4})(.{4})(.{4})(.{12})$/', '$1-$2-$3-$4-$5', $hex);
}

function user(string $first, string $last): array
{
    return [
        'object' => 'USER',
        'id' => id(),
        'email' => strtolower(preg_replace('/[^A-Za-z]/', '', $first)) . '@example.com',
        'first_name' => $first,
        'last_name' => $last,
        'full_name' => "$first $last",
        'internal_notes' => null,
        'status' => 'active',
        'phone' => '6175550173',
        'avatar_url' => 'https://cdn.example.com/avatars/' . id() . '.jpg',
        'timezone' => 'America/New_York',
    ];
}

function group(string $type, string $name, array $users = []): array
{
    return [
        'object' => 'GROUP',
        'id' => id(),
        'type' => $type,
        'name' => $name,
        'email' => 'office@example.com',
        'phone' => '6175550173',
        'website_url' => 'https://www.example.com/',
        'logo_url' => null,
        'office_name' => $type === 'AGENT' ? 'Café & Harbor Realty' : null,
        'license_number' => $type === 'AGENT' ? '9512345' : null,
        'timezone' => 'America/New_York',
        'currency' => 'USD',
        'slug' => 'example-photography',
        'order_page_url' => 'https://example-photography.aryeo.com/order',
        'social_profiles' => [],
        'users' => $users,
        'custom_field_entries' => null,
    ];
}

function address(): array
{
    return [
        'id' => id(),
        'latitude' => 42.35157458574123,
        'longitude' => -71.05763741484657,
        'street_number' => '107',
        'street_name' => 'South St',
        'unit_number' => 'Unit 2F',
        'postal_code' => '02111',
        'city' => 'Boston',
        'city_region' => 'Leather District',
        'county_or_parish' => 'Suffolk County',
        'state_or_province' => 'MA',
        'state_or_province_region' => null,
        'country' => 'US',
        'country_region' => null,
        'timezone' => 'America/New_York',
        'unparsed_address' => '107 South St, Boston MA, 02111',
        'unparsed_address_part_one' => '107 South St, Unit 2F',
        'unparsed_address_part_two' => 'Boston, MA 02111',
        'is_map_dirty' => false,
    ];
}

function item(string $title, string $subtitle, int $cents): array
{
    return [
        'object' => 'ORDER_ITEM',
        'id' => id(),
        'title' => $title,
        'subtitle' => $subtitle,
        'purchasable_type' => 'PRODUCT_VARIANT',
        'amount' => $cents,
        'unit_price_amount' => $cents,
        'quantity' => 1,
        'gross_total_amount' => $cents,
        'is_serviceable' => true,
        'is_canceled' => false,
        'taxes' => [],
        'discounts' => [],
    ];
}

function order(int $number, array $items, string $payment = 'UNPAID'): array
{
    $id = id();
    $total = array_sum(array_column($items, 'amount'));
    return [
        'object' => 'ORDER',
        'id' => $id,
        'identifier' => "Order #$number",
        'number' => $number,
        'title' => "Order #$number",
        'status' => 'CONFIRMED',
        'order_status' => 'OPEN',
        'is_ghost' => false,
        'fulfilled_at' => null,
        'fulfillment_status' => 'UNFULFILLED',
        'payment_status' => $payment,
        'internal_notes' => null,
        'currency' => 'USD',
        'total_amount' => $total,
        'balance_amount' => $payment === 'PAID' ? 0 : $total,
        'total_tax_amount' => 0,
        'total_discount_amount' => 0,
        'payment_url' => "https://www.aryeo.com/v2/stripe/checkout/order/$id",
        'status_url' => "https://www.aryeo.com/orders/$id/status",
        'invoice_url' => null,
        'downloads_allowed' => true,
        'payments_allowed' => true,
        'address' => address(),
        'customer' => group('AGENT', 'Zoë Núñez'),
        'discounts' => [],
        'tags' => [[
            'object' => 'APP\\TAGS\\MODELS\\TAG',
            'id' => id(),
            'name' => 'Rush',
            'slug' => 'rush',
            'color' => '#8BC34A',
            'font_color' => '#FFFFFF',
        ]],
        'items' => $items,
        'custom_items' => [],
        'appointments' => [],
        'unconfirmed_appointments' => [],
        'custom_fields' => [],
        'created_at' => '2026-03-01T10:00:00Z',
        'updated_at' => '2026-03-01T10:05:00.123456Z',
    ];
}

function appointment(string $status): array
{
    // As published, without an `object`.
    return [
        'id' => id(),
        'status' => $status,
        'title' => null,
        'description' => "Customer: Zoë Núñez\nLockbox: 1234#\r\n\tPark on the “left” side",
        'start_at' => '2026-06-30T20:30:00Z',
        'end_at' => '2026-06-30T21:30:00Z',
        'rescheduled_at' => null,
        'postponed_at' => null,
        'previous_start_at' => null,
        'preference_type' => 'NONE',
        'duration' => 60,
        'requires_confirmation' => false,
        'users' => [user('Sam', 'Lee')],
        'order' => order(458, [item('Photography / Drone Package', 'Up to 2,500 sq. ft.', 34900)]),
        'items' => [],
        'can_cancel' => true,
        'can_reschedule' => true,
        'late_cancellation_fee' => [],
        'deleted_at' => null,
        'updated_at' => '2026-06-01T09:00:00.123456Z',
    ];
}

function listing(int $images): array
{
    $id = id();
    $media = [];
    for ($index = 0; $index < $images; $index++) {
        $image = id();
        $media[] = [
            'id' => $image,
            'index' => $index,
            'caption' => $index === 0 ? 'Façade at dusk — “golden hour” 🌇' : null,
            'filename' => sprintf('107-south-st-%03d.jpg', $index + 1),
            'original_url' => "https://cdn.aryeo.com/listings/$id/images/original/$image.jpg",
            'large_url' => "https://cdn.aryeo.com/listings/$id/images/large/$image.jpg",
            'thumbnail_url' => "https://cdn.aryeo.com/listings/$id/images/thumbnail/$image.jpg",
            'is_displayed' => true,
        ];
    }
    return [
        'object' => 'LISTING',
        'id' => $id,
        'address' => address(),
        'mls_number' => null,
        'type' => 'CONDO',
        'sub_type' => null,
        'status' => 'FOR_SALE',
        'standard_status' => 'ACTIVE',
        'description' => 'Loft with 12′ ceilings, two blocks from South Station.',
        'lot' => ['size_acres' => 0.12, 'open_parking_spaces' => 1],
        'building' => ['bedrooms' => 2, 'bathrooms' => 1.5, 'square_feet' => 1240.0, 'year_built' => '1899'],
        'price' => ['list_price' => 89500000, 'sale_price' => null],
        'list_agent' => group('AGENT', 'Zoë Núñez'),
        'co_list_agent' => null,
        'images' => $media,
        'videos' => [],
        'floor_plans' => [],
        'interactive_content' => [],
        'property_website' => [
            'id' => id(),
            'branded_url' => "https://media.example.com/sites/$id",
            'unbranded_url' => "https://media.example.com/sites/$id/unbranded",
        ],
        'orders' => [],
        'downloads_enabled' => true,
        'delivery_status' => 'DELIVERED',
    ];
}

function activity(string $name, string $what, array $resource): array
{
    $group = group('CREATOR', 'Full Package Media');
    return [
        'object' => 'ACTIVITY',
        'id' => id(),
        'title' => ucwords(strtolower(str_replace('_', ' ', $name))),
        'name' => $name,
        'description' => $what,
        'source' => 'WEB',
        'occurred_at' => '2026-03-01T10:05:00Z',
        'payload' => [],
        'html_payload' => null,
        'system_activity' => false,
        'target_url' => 'https://www.aryeo.com/activities/' . id(),
        'target_label' => null,
        'acting_user' => user('José', 'García'),
        'acting_group' => $group,
        'group' => $group,
        'resource' => $resource,
    ];
}

$bodies = [
    'order_created' => activity('ORDER_CREATED', 'José García created Order #5996.', order(5996, [
        item('Photography / Drone Package', 'Up to 2,500 sq. ft.', 34900),
        item('Twilight Photos', '5 photos', 15000),
        item('3D Tour', 'Hosted 12 months', 19900),
    ])),
    'appointment_scheduled' => activity(
        'APPOINTMENT_SCHEDULED',
        'An appointment was scheduled for 107 South St, Boston MA.',
        appointment('SCHEDULED'),
    ),
    'listing_delivered' => activity(
        'LISTING_DELIVERED',
        '107 South St, Boston MA was delivered to Zoë Núñez.',
        listing(38),
    ),
    'order_payment_completed' => activity(
        'ORDER_PAYMENT_COMPLETED',
        'Zoë Núñez paid $602.00 for Order #5996.',
        [
            'object' => 'ORDER_PAYMENT',
            'id' => id(),
            'type' => 'CHECKOUT',
            'collection_source' => 'STRIPE',
            'completed_at' => '2026-03-01T10:05:00Z',
            'applicable_amount' => 50200,
            'tip_amount' => 10000,
            'total_amount' => 60200,
            'collected_amount' => 60200,
            'fee_rate' => 0.029,
            'exchange_rate' => 1.0,
        ],
    ),
    'customer_team_created' => activity(
        'CUSTOMER_TEAM_CREATED',
        'José García created “Zoë’s Team”.',
        [
            'object' => 'CUSTOMER_TEAM',
            'id' => id(),
            'name' => 'Zoë’s Team 🏡',
            'owner' => user('Zoë', 'Núñez'),
            'memberships' => [],
            'created_at' => '2026-03-01T10:05:00Z',
        ],
    ),
    'listing_delivered_brief' => [
        'object' => 'ACTIVITY',
        'id' => id(),
        'name' => 'LISTING_DELIVERED',
        'occurred_at' => '2026-03-01T10:05:00Z',
        'acting_user' => user('José', 'García'),
        'resource' => [
            'object' => 'LISTING',
            'id' => id(),
            'delivery_status' => 'DELIVERED',
            'address' => ['unparsed_address' => '9 Rue de l’Église / Apt. 3, Montréal QC'],
        ],
    ],
    'appointment_canceled' => activity(
        'APPOINTMENT_CANCELED',
        'The appointment for 107 South St, Boston MA was canceled.',
        appointment('CANCELED'),
    ),
    // What Aryeo's older subscriptions send: the resource alone, without saying what happened.
    'flat_order' => order(1623, [item('Photography', '25 photos', 24900)], 'PAID'),
];

$samples = [];
foreach ($bodies as $name => $body) {
    $json = json_encode($body);
    $samples[] = [
        'name' => $name,
        'activity' => ($body['object'] === 'ACTIVITY') ? $body['name'] : null,
        'secret' => SECRET,
        'body_base64' => base64_encode($json),
        'signature_hex' => hash_hmac('sha256', $json, SECRET),
    ];
}
echo json_encode($samples, JSON_PRETTY_PRINT), "\n";
